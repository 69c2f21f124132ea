// SPDX-License-Identifier: GPL-2.0-only
/*
 * The character device and its sessions.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/pm_runtime.h>
#include <linux/sched/user.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

#define DMAPROBE_MAX_DEVICES	256

static dev_t dmaprobe_devt;
static DEFINE_IDA(dmaprobe_minors);

/*
 * Give the device the limits it was bound with. Setting masks also lets the DMA core
 * find out what the device needs, so this is done at the start as well.
 */
static void reset_limits(struct dmaprobe_device *dd)
{
	struct device *dev = &dd->pdev->dev;

	dma_set_mask(dev, dd->bound_mask);
	dma_set_coherent_mask(dev, dd->bound_coherent_mask);
	dma_set_seg_boundary(dev, dd->bound_boundary);
	dma_set_max_seg_size(dev, dd->bound_max_segment);
	dma_set_min_align_mask(dev, dd->bound_min_align);
	dd->direct_max = dma_max_mapping_size(dev);
}

static int dmaprobe_open(struct inode *inode, struct file *file)
{
	struct dmaprobe_device *dd =
		container_of(inode->i_cdev, struct dmaprobe_device, cdev);
	struct dmaprobe_session *s;
	int ret;

	s = kzalloc_obj(*s, GFP_KERNEL_ACCOUNT);
	if (!s)
		return -ENOMEM;
	/* The file pins the cdev, and the cdev the device. */
	s->dd = dd;
	xa_init_flags(&s->objects, XA_FLAGS_ALLOC1);
	s->inode = dmaprobe_inode_new();
	if (IS_ERR(s->inode)) {
		ret = PTR_ERR(s->inode);
		goto err_free;
	}

	down_read(&dd->unplug_lock);
	if (!dd->pdev) {
		ret = -ENODEV;
		goto err_unlock;
	}
	/* vfio-pci-core lets a device that nobody uses sleep; not ours. */
	ret = pm_runtime_resume_and_get(&dd->pdev->dev);
	if (ret)
		goto err_unlock;
	if (!capable(CAP_IPC_LOCK))
		s->user = get_uid(current_user());

	mutex_lock(&dd->lock);
	list_add_tail(&s->node, &dd->sessions);
	mutex_unlock(&dd->lock);
	up_read(&dd->unplug_lock);

	file->private_data = s;
	file->f_mapping = s->inode->i_mapping;
	return 0;

err_unlock:
	up_read(&dd->unplug_lock);
	dmaprobe_inode_put(s->inode);
err_free:
	kfree(s);
	return ret;
}

/*
 * Undo all that a session did to its device: this, then session_release_memory().
 * The device stops before its memory goes away from under it.
 */
static void session_stop(struct dmaprobe_session *s)
{
	dmaprobe_mmio_disable(s);
	dmaprobe_objects_teardown(s, false);
}

static void session_release_memory(struct dmaprobe_session *s)
{
	dmaprobe_objects_teardown(s, true);
	pm_runtime_put(&s->dd->pdev->dev);
}

static int dmaprobe_release(struct inode *inode, struct file *file)
{
	struct dmaprobe_session *s = file->private_data;
	struct dmaprobe_device *dd = s->dd;

	scoped_guard(rwsem_read, &dd->unplug_lock) {
		/* Without a device, unplug has stopped the session. */
		if (dd->pdev) {
			session_stop(s);
			session_release_memory(s);
			guard(mutex)(&dd->lock);
			list_del(&s->node);
			if (list_empty(&dd->sessions))
				reset_limits(dd);
		}
	}

	if (s->user)
		free_uid(s->user);
	dmaprobe_inode_put(s->inode);
	kfree(s);
	return 0;
}

static const struct file_operations dmaprobe_fops = {
	.owner = THIS_MODULE,
	.open = dmaprobe_open,
	.release = dmaprobe_release,
	.unlocked_ioctl = dmaprobe_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.uring_cmd = dmaprobe_uring_cmd,
	.mmap = dmaprobe_mmap,
};

/* The node's mode is left at the default: root's alone, 0600. */
static char *dmaprobe_devnode(const struct device *dev, umode_t *mode)
{
	return kasprintf(GFP_KERNEL, "dmaprobe/%s", dev_name(dev));
}

static void dmaprobe_device_free(struct device *dev)
{
	struct dmaprobe_device *dd =
		container_of(dev, struct dmaprobe_device, dev);

	ida_free(&dmaprobe_minors, MINOR(dd->dev.devt));
	mutex_destroy(&dd->lock);
	kfree(dd);
}

static struct class dmaprobe_class = {
	.name = "dmaprobe",
	.devnode = dmaprobe_devnode,
	.dev_release = dmaprobe_device_free,
};

/**
 * dmaprobe_device_create - make the character device of a PCI device
 * @pdev: the PCI device, being probed
 *
 * Return: the device, not yet visible, or an ERR_PTR()
 */
struct dmaprobe_device *dmaprobe_device_create(struct pci_dev *pdev)
{
	struct dmaprobe_device *dd;
	int minor, ret;

	dd = kzalloc_obj(*dd, GFP_KERNEL);
	if (!dd)
		return ERR_PTR(-ENOMEM);
	minor = ida_alloc_max(&dmaprobe_minors, DMAPROBE_MAX_DEVICES - 1,
			      GFP_KERNEL);
	if (minor < 0) {
		kfree(dd);
		return ERR_PTR(minor);
	}

	init_rwsem(&dd->unplug_lock);
	mutex_init(&dd->lock);
	INIT_LIST_HEAD(&dd->sessions);
	dd->pdev = pdev;
	dd->domain = iommu_get_domain_for_dev(&pdev->dev);
	dd->bound_mask = dma_get_mask(&pdev->dev);
	dd->bound_coherent_mask = pdev->dev.coherent_dma_mask;
	dd->bound_boundary = dma_get_seg_boundary(&pdev->dev);
	dd->bound_max_segment = dma_get_max_seg_size(&pdev->dev);
	dd->bound_min_align = dma_get_min_align_mask(&pdev->dev);
	reset_limits(dd);

	device_initialize(&dd->dev);
	dd->dev.class = &dmaprobe_class;
	dd->dev.parent = &pdev->dev;
	dd->dev.devt = MKDEV(MAJOR(dmaprobe_devt), minor);
	cdev_init(&dd->cdev, &dmaprobe_fops);
	dd->cdev.owner = THIS_MODULE;

	ret = dev_set_name(&dd->dev, "%s", pci_name(pdev));
	if (ret) {
		put_device(&dd->dev);
		return ERR_PTR(ret);
	}
	return dd;
}

/**
 * dmaprobe_device_add - let users open the device
 * @dd: the device
 *
 * Return: 0 or a negative errno
 */
int dmaprobe_device_add(struct dmaprobe_device *dd)
{
	return cdev_device_add(&dd->cdev, &dd->dev);
}

/**
 * dmaprobe_device_unplug - take the PCI device away from its sessions
 * @dd: the device; visible
 *
 * Waits for the calls in flight. All that sessions hold is torn down; from then
 * on every call answers ENODEV.
 */
void dmaprobe_device_unplug(struct dmaprobe_device *dd)
{
	struct dmaprobe_session *s, *next;

	cdev_device_del(&dd->cdev, &dd->dev);

	guard(rwsem_write)(&dd->unplug_lock);
	/* One session's memory may be what another has mapped: a dma-buf. */
	list_for_each_entry(s, &dd->sessions, node)
		session_stop(s);
	list_for_each_entry_safe(s, next, &dd->sessions, node) {
		session_release_memory(s);
		list_del(&s->node);
	}
	reset_limits(dd);
	WRITE_ONCE(dd->pdev, NULL);
	dd->domain = NULL;
}

/**
 * dmaprobe_device_put - give back the reference of dmaprobe_device_create()
 * @dd: the device
 */
void dmaprobe_device_put(struct dmaprobe_device *dd)
{
	put_device(&dd->dev);
}

static int __init dmaprobe_init(void)
{
	int ret;

	ret = alloc_chrdev_region(&dmaprobe_devt, 0, DMAPROBE_MAX_DEVICES,
				  "dmaprobe");
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
