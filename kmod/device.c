// SPDX-License-Identifier: GPL-2.0-only
/* Bound devices, their character devices, and the groups they are in. */
#include <linux/cc_platform.h>
#include <linux/dma-map-ops.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/pm_runtime.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

#define DMAPROBE_MAX_DEVICES	256

static bool allow_unsafe_interrupts;
module_param(allow_unsafe_interrupts, bool, 0444);
MODULE_PARM_DESC(allow_unsafe_interrupts, "Let users enable devices that can send any interrupt");

static dev_t dmaprobe_devt;
static DEFINE_IDA(dmaprobe_minors);
static DEFINE_MUTEX(dmaprobe_groups_lock);
static LIST_HEAD(dmaprobe_groups);

/* The group of those that share the page tables of @domain; NULL: none does. */
static struct dmaprobe_group *group_get(struct iommu_domain *domain)
{
	struct dmaprobe_group *group;

	guard(mutex)(&dmaprobe_groups_lock);
	list_for_each_entry(group, &dmaprobe_groups, node) {
		if (domain && group->domain == domain) {
			group->users++;
			return group;
		}
	}
	group = kzalloc_obj(*group, GFP_KERNEL);
	if (!group)
		return NULL;
	group->domain = domain;
	group->users = 1;
	init_rwsem(&group->lock);
	mutex_init(&group->turn);
	mutex_init(&group->segments);
	mutex_init(&group->walk);
	list_add(&group->node, &dmaprobe_groups);
	return group;
}

static void group_put(struct dmaprobe_group *group)
{
	guard(mutex)(&dmaprobe_groups_lock);
	if (--group->users)
		return;
	list_del(&group->node);
	kfree(group);
}

/* The node's mode is left at the default: root's alone, 0600. */
static char *dmaprobe_devnode(const struct device *dev, umode_t *mode)
{
	return kasprintf(GFP_KERNEL, "dmaprobe/%s", dev_name(dev));
}

static void dmaprobe_device_free(struct device *dev)
{
	struct dmaprobe_device *dd = container_of(dev, struct dmaprobe_device, dev);

	if (dd->group)
		group_put(dd->group);
	kfree(dd);
}

static struct class dmaprobe_class = {
	.name = "dmaprobe",
	.devnode = dmaprobe_devnode,
	.dev_release = dmaprobe_device_free,
};

static int has_other_driver(struct device *dev, void *data)
{
	struct pci_dev *pdev = dev_is_pci(dev) ? to_pci_dev(dev) : NULL;
	const struct device_driver *ours = data, *driver = READ_ONCE(dev->driver);

	if (!driver || driver == ours)
		return 0;
	/* Bridges are always in a group with what is behind them, and map nothing. */
	return !pdev || !pci_is_bridge(pdev);
}

/* Whether another driver maps, and unmaps, in the same page tables: it does not ask us. */
bool dmaprobe_group_is_shared(struct device *dev)
{
	struct iommu_group *group = iommu_group_get(dev);
	bool ret = group && iommu_group_for_each_dev(group, dev->driver, has_other_driver);

	iommu_group_put(group);
	return ret;
}

/* Interrupts are writes, which no IOMMU translates: without isolation they can be anybody's. */
static bool is_confined(const struct dmaprobe_device *dd)
{
	struct iommu_group *group = iommu_group_get(&dd->pdev->dev);
	bool ret = group && dmaprobe_translates(dd) &&
		   (allow_unsafe_interrupts || iommu_group_has_isolated_msi(group));

	iommu_group_put(group);
	return ret;
}

/*
 * Make the character device of a PCI device: cdev_device_add() is to make it visible,
 * put_device() to free it. Returns the device or an ERR_PTR().
 */
struct dmaprobe_device *dmaprobe_device_create(struct pci_dev *pdev)
{
	struct dmaprobe_device *dd;
	int minor, ret;

	/* We check what dma-direct and dma-iommu need, for memory that devices can reach. */
	if (get_dma_ops(&pdev->dev) || pci_is_bridge(pdev) ||
	    (cc_platform_has(CC_ATTR_MEM_ENCRYPT) && !cc_platform_has(CC_ATTR_HOST_MEM_ENCRYPT))) {
		pci_err(pdev, "a bridge, a confidential guest, or the platform's own DMA operations\n");
		return ERR_PTR(-EOPNOTSUPP);
	}
	dd = kzalloc_obj(*dd, GFP_KERNEL);
	if (!dd)
		return ERR_PTR(-ENOMEM);
	minor = ida_alloc_max(&dmaprobe_minors, DMAPROBE_MAX_DEVICES - 1, GFP_KERNEL);
	if (minor < 0) {
		kfree(dd);
		return ERR_PTR(minor);
	}
	mutex_init(&dd->lock);
	INIT_LIST_HEAD(&dd->sessions);
	dd->pdev = pdev;
	device_initialize(&dd->dev);
	dd->dev.class = &dmaprobe_class;
	dd->dev.parent = &pdev->dev;
	dd->dev.devt = MKDEV(MAJOR(dmaprobe_devt), minor);
	cdev_init(&dd->cdev, &dmaprobe_fops);
	dd->cdev.owner = THIS_MODULE;

	dd->domain = iommu_get_domain_for_dev(&pdev->dev);
	dd->group = group_get(dmaprobe_translates(dd) ? dd->domain : NULL);
	ret = dd->group ? dev_set_name(&dd->dev, "%s", pci_name(pdev)) : -ENOMEM;
	if (ret) {
		ida_free(&dmaprobe_minors, minor);
		put_device(&dd->dev);
		return ERR_PTR(ret);
	}
	dd->confined = is_confined(dd);
	dmaprobe_limits_save(dd);
	dmaprobe_limits_reset(dd);
	return dd;
}

/*
 * Take the PCI device away from its sessions.
 *
 * Waits for the calls in flight. All that sessions hold is torn down; from then on
 * every call answers ENODEV.
 */
void dmaprobe_device_unplug(struct dmaprobe_device *dd)
{
	struct dmaprobe_session *s, *next;

	if (device_is_registered(&dd->dev))
		cdev_device_del(&dd->cdev, &dd->dev);
	ida_free(&dmaprobe_minors, MINOR(dd->dev.devt));

	guard(mutex)(&dd->lock);
	scoped_guard(rwsem_write, &dd->group->lock)
		WRITE_ONCE(dd->unplugged, true);

	/* The device stops before any memory goes away from under it. */
	list_for_each_entry(s, &dd->sessions, node)
		dmaprobe_disable(s);
	list_for_each_entry_safe(s, next, &dd->sessions, node) {
		dmaprobe_objects_teardown(s);
		list_del_init(&s->node);
		pm_runtime_put(&dd->pdev->dev);
	}
	dmaprobe_limits_reset(dd);
	scoped_guard(rwsem_write, &dd->group->lock)
		dmaprobe_spare_put(dd);
	dd->domain = NULL;
	dd->pdev = NULL;
}

static int __init dmaprobe_init(void)
{
	int ret = alloc_chrdev_region(&dmaprobe_devt, 0, DMAPROBE_MAX_DEVICES, "dmaprobe");

	if (ret)
		return ret;
	ret = class_register(&dmaprobe_class);
	if (ret)
		goto err_chrdev;
	ret = dmaprobe_vfio_register();
	if (ret)
		goto err_class;
	return 0;

err_class:
	class_unregister(&dmaprobe_class);
err_chrdev:
	unregister_chrdev_region(dmaprobe_devt, DMAPROBE_MAX_DEVICES);
	return ret;
}

static void __exit dmaprobe_exit(void)
{
	dmaprobe_vfio_unregister();
	class_unregister(&dmaprobe_class);
	unregister_chrdev_region(dmaprobe_devt, DMAPROBE_MAX_DEVICES);
	ida_destroy(&dmaprobe_minors);
}

module_init(dmaprobe_init);
module_exit(dmaprobe_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Drive the DMA-mapping API from user space");
MODULE_AUTHOR("dmaprobe developers");
